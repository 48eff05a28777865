"""The linear map of the low-rank methods without W', its norms, and matrices in blocks of rows."""
