"""The models of a folder of diffusers' pipeline, as one: ``unet.down_blocks…``, ``text_encoder.text_model…``."""

from collections.abc import Collection

from deltaw.analysis.records.storage.file_names import weights_file
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.tensors import Renamed, Several, Tensors, read_weights

INDEX = "model_index.json"  # by which such a folder is known
PARTS = ("unet", "transformer", "transformer_2", "prior", "text_encoder", "text_encoder_2", "text_encoder_3")


def pipeline(storage: Storage, names: Collection[str]) -> Tensors:
    """Return the tensors of a pipeline's models that are adapted, each name after its part's; none is read.

    Raises:
        RecordError: A model is damaged.
    """
    found: dict[str, Tensors] = {}
    for part in PARTS:
        if part not in names or not storage.has_folder(part):
            continue
        folder = storage.folder(part)
        file = weights_file(folder.names())
        if file is not None:
            model = read_weights(folder, file)
            renamed = Renamed(model, {f"{part}.{name}": name for name in model.names()})
            found |= dict.fromkeys(renamed.names(), renamed)
    return Several(found, storage.where)
