"""Where the bytes are: local files, addresses, and the files of tensors in them; atomic writes."""
