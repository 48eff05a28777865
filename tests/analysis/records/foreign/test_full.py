"""Whole models as others save them: Trainer's output, save_pretrained, shards, pickles, stepped files, pairs."""

import json
import math
import zipfile

import pytest
import torch
import transformers
from safetensors.torch import save_file

from deltaw.adapters import DeltawError, OptionError, RecordError, TargetError
from deltaw.analysis import Trajectory, open_runs, table

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
TEXT = {"vocab_size": 30, "max_position_embeddings": 16}


def models():
    """A small model of every shape that the readers know, by name."""
    t = transformers
    return {
        "bert": t.BertForSequenceClassification(t.BertConfig(**SMALL, **TEXT)),
        "roberta": t.RobertaForSequenceClassification(t.RobertaConfig(**SMALL, **TEXT)),
        "llama": t.LlamaForCausalLM(t.LlamaConfig(**SMALL, **TEXT, num_key_value_heads=1)),
        "gpt2": t.GPT2LMHeadModel(t.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=30, n_positions=16)),
        "bart": t.BartForConditionalGeneration(
            t.BartConfig(
                d_model=12,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=3,
                decoder_attention_heads=3,
                encoder_ffn_dim=20,
                decoder_ffn_dim=20,
                **TEXT,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
                decoder_start_token_id=2,
                forced_eos_token_id=2,
            )
        ),
        "vit": t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=8, patch_size=4)),
    }


@pytest.fixture(scope="module")
def kept():
    torch.manual_seed(0)
    return models()


def perturbed(model, seed):
    """Move every parameter a little, and return the weights of its linear layers [out, in]."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    return linear(model)


def linear(model):
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[saved_as(name)] = module.weight.detach().clone()
        elif type(module).__name__ == "Conv1D":
            found[name] = module.weight.detach().T.clone()
    found.pop("lm_head", None)
    return found


def saved_as(name):
    """transformers 5 keeps ViT's old names in the files."""
    if not name.startswith("vit.layers."):
        return name
    for new, old in {
        "vit.layers": "vit.encoder.layer",
        "attention.o_proj": "attention.output.dense",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "bart", "vit"])
@pytest.mark.parametrize("shard", [None, "7KB"])
def test_checkpoints_of_every_shape(kind, shard, kept, tmp_path):
    model = kept[kind]
    sizes = {} if shard is None else {"max_shard_size": shard}
    model.save_pretrained(tmp_path / "base", **sizes)
    base, steps = linear(model), {}
    for step in (10, 20, 100):
        steps[step] = perturbed(model, step)
        model.save_pretrained(tmp_path / "out" / f"checkpoint-{step}", **sizes)
    if shard is not None:
        assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1

    run = Trajectory.open(tmp_path / "out", base=tmp_path / "base", split=False)
    assert run.steps == [10, 20, 100]
    assert run.method == "ft"
    assert set(run.modules) == set(base)
    for module in run.modules:
        assert run.shape(module) == tuple(base[module].shape)
        assert torch.equal(run.base(module), base[module])
        for step, weights in steps.items():
            assert torch.equal(run.weight(module, step), weights[module])
            wanted = weights[module].double() - base[module].double()
            assert torch.equal(run.update(module, step), wanted)
    kinds = set(run.changes("base").kind)
    assert {"bert": {"query", "key", "value", "output", "up", "down"}, "gpt2": {"qkv", "output", "up", "down"}}.get(
        kind, {"query", "key", "value", "output", "up", "down"}
    ) <= kinds
    assert len(run.spectra([20])) == len(run.modules)


def test_a_trainers_own_folder(kept, tmp_path):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"input_ids": torch.arange(5) + index, "labels": index % 2}

    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=6, save_steps=2, logging_steps=2, eval_steps=2, eval_strategy="steps",
        per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, **TEXT))
    model.save_pretrained(tmp_path / "base")
    trainer = transformers.Trainer(model, arguments, train_dataset=Data(), eval_dataset=Data())
    trainer.train()
    run = Trajectory.open(tmp_path / "out", base=tmp_path / "base")
    assert run.steps == [2, 4, 6]
    last = linear(model)
    assert all(torch.equal(run.weight(module, 6), last[module]) for module in run.modules)
    assert (run.changes("base", axes=["row"]).delta_d > 0).all()
    scalars = run.scalars()
    assert {"step", "epoch", "loss", "eval_loss", "learning_rate"} <= set(scalars.columns)
    assert list(scalars.step.dropna()) == [2, 4, 6]
    assert math.isfinite(scalars.eval_loss.iloc[0])


def test_a_single_folder_a_single_file_and_a_pair(kept, tmp_path):
    model = kept["llama"]
    model.save_pretrained(tmp_path / "before")
    before, after = linear(model), perturbed(model, 3)
    model.save_pretrained(tmp_path / "after")
    module = "model.layers.1.self_attn.q_proj"
    for path in (tmp_path / "after", tmp_path / "after" / "model.safetensors"):
        run = Trajectory.open(path)
        assert run.steps == [0]
        assert torch.equal(run.weight(module, 0), after[module])
        with pytest.raises(RecordError, match="base=FOLDER"):
            run.base(module)
    pair = Trajectory.from_pair(tmp_path / "before", tmp_path / "after" / "model.safetensors")
    assert pair.steps == [0, 1]
    assert torch.equal(pair.update(module, 1), after[module].double() - before[module].double())
    assert len(pair.changes("consecutive")) == 2 * len(pair.modules)
    kept["bert"].save_pretrained(tmp_path / "other")
    with pytest.raises(RecordError, match="not of one model"):
        Trajectory.from_pair(tmp_path / "before", tmp_path / "other")


def test_base_from_memory_and_of_another_head(kept, tmp_path):
    model = kept["bert"]
    model.save_pretrained(tmp_path / "out" / "checkpoint-1")
    weights = linear(model)
    module = "bert.encoder.layer.0.attention.self.query"
    for base in (model, model.state_dict(), model.bert, model.bert.state_dict()):
        run = Trajectory.open(tmp_path / "out", base=base)
        assert torch.equal(run.base(module), weights[module])
    run = Trajectory.open(tmp_path / "out", base=model.bert)
    with pytest.raises(RecordError, match="no matrix of classifier"):
        run.base("classifier")
    with pytest.raises(RecordError, match=r"model that was trained|another model"):
        Trajectory.open(tmp_path / "out", base=kept["llama"]).base(module)
    with pytest.raises(RecordError, match="cache"):
        Trajectory.open(tmp_path / "out", base="nobody/nothing")
    with pytest.raises(OptionError, match="base is a int"):
        Trajectory.open(tmp_path / "out", base=3)


def test_a_name_in_the_cache(kept, tmp_path, monkeypatch):
    model = kept["bert"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--org--tiny.bert"
    commit = "0123abcd" * 5
    model.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    model.save_pretrained(tmp_path / "out" / "checkpoint-1")
    run = Trajectory.open(tmp_path / "out", base="org/tiny.bert")
    assert torch.equal(run.base("classifier"), model.classifier.weight)
    for name in ("../hub", "a/b/c", "org/..", "/etc"):
        with pytest.raises(DeltawError):
            Trajectory.open(tmp_path / "out", base=name)


def test_embeddings_only_when_asked(kept, tmp_path):
    kept["gpt2"].save_pretrained(tmp_path)
    assert not any("wte" in m or "wpe" in m for m in Trajectory.open(tmp_path).modules)
    run = Trajectory.open(tmp_path, modules=["*.wte", "*.0.mlp.*"])
    assert run.modules == ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj", "transformer.wte"]
    with pytest.raises(TargetError, match="nothing"):
        Trajectory.open(tmp_path, modules=["nothing"])


def test_a_pattern_names_layer_and_kind(tmp_path):
    save_file({"net.blk7_mix.weight": torch.eye(3)}, tmp_path / "model.safetensors")
    run = Trajectory.open(
        tmp_path, base={"net.blk7_mix.weight": torch.zeros(3, 3)}, pattern=r"blk(?P<layer>\d+)_(?P<kind>\w+)"
    )
    frame = run.spectra()
    assert (frame.layer[0], frame.kind[0], frame["rank"][0]) == (7, "mix", 3)
    for pattern in ("(", "no groups"):
        with pytest.raises(OptionError, match="pattern"):
            Trajectory.open(tmp_path, pattern=pattern)


def test_files_whose_names_hold_a_step(tmp_path):
    for step in (5, 50, 500):
        save_file({"a.weight": torch.full((2, 3), float(step))}, tmp_path / f"epoch1-step{step}.safetensors")
    run = Trajectory.open(tmp_path)
    assert run.steps == [5, 50, 500]
    assert run.weight("a", 50)[0, 0] == 50
    save_file({"a.weight": torch.ones(2, 3)}, tmp_path / "last.safetensors")
    with pytest.raises(RecordError, match=r"last\.safetensors"):
        Trajectory.open(tmp_path)


def test_pickles_only_of_tensors(kept, tmp_path):
    model = kept["bert"]
    (tmp_path / "whole" / "checkpoint-4").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "whole" / "checkpoint-4" / "pytorch_model.bin")
    run = Trajectory.open(tmp_path / "whole")
    assert torch.equal(run.weight("classifier", 4), model.classifier.weight)

    shards = tmp_path / "shards"
    shards.mkdir()
    state = model.state_dict()
    names = {f"pytorch_model-{k + 1:05d}-of-00002.bin": list(state)[k::2] for k in range(2)}
    for name, keys in names.items():
        torch.save({key: state[key] for key in keys}, shards / name)
    index = {"weight_map": {key: name for name, keys in names.items() for key in keys}}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(Trajectory.open(shards).weight("classifier", 0), model.classifier.weight)

    lightning = tmp_path / "step=7.ckpt"
    torch.save({"state_dict": {"net.weight": torch.eye(2)}, "epoch": 1}, lightning)
    assert torch.equal(Trajectory.open(lightning).weight("net", 7), torch.eye(2))


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    proof = tmp_path / "ran"
    path = tmp_path / "model" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save({"a.weight": torch.eye(2), "bad": Runs(proof)}, path)
    with pytest.raises(RecordError, match="save_file"):
        Trajectory.open(path.parent)
    assert not proof.exists()
    torch.load(path, weights_only=False)["bad"].close()  # the proof can fail: it does run where it is let
    assert proof.exists()


def test_old_and_compressed_archives_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a.weight": torch.eye(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RecordError, match="before 2020"):
        Trajectory.open(tmp_path)
    torch.save({"a.weight": torch.zeros(300, 300)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(RecordError, match="compressed"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a\\b", "", None, 3, "sub/x.safetensors"])
def test_an_index_does_not_lead_out(name, tmp_path):
    save_file({"a.weight": torch.eye(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(RecordError, match="only files of the folder"):
        Trajectory.open(folder)


def test_a_missing_shard_and_what_is_no_run(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": "b.safetensors"}}))
    with pytest.raises(RecordError, match=r"b\.safetensors: is missing"):
        Trajectory.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="not a recorded run"):
        Trajectory.open(tmp_path / "empty")
    with pytest.raises(RecordError, match="no such folder"):
        Trajectory.open(tmp_path / "nothing")
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(RecordError, match="checkpoint-3: holds no model weights"):
        Trajectory.open(tmp_path / "out")
    save_file({"a.weight": torch.eye(2)}, tmp_path / "empty" / "model.safetensors")
    run = Trajectory.open(tmp_path / "empty")
    with pytest.raises(RecordError, match="has no manifest"):
        _ = run.manifest


def test_a_table_is_no_run(tmp_path):
    (tmp_path / "results.csv").write_text("method,rank\nlora,8\n")
    with pytest.raises(RecordError, match=r"results\.csv: is no run's folder"):
        Trajectory.open(tmp_path / "results.csv")


def test_a_git_lfs_pointer_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(RecordError, match="git lfs pull"):
        Trajectory.open(tmp_path)


def test_tables_over_several_runs(kept, tmp_path):
    for name in ("a", "b"):
        for step in (1, 2):
            perturbed(kept["bert"], step)
            kept["bert"].save_pretrained(tmp_path / name / f"checkpoint-{step}")
    runs = open_runs([tmp_path / "a", tmp_path / "b"])
    assert set(table(runs, "consecutive").run) == {"a", "b"}


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightnings_checkpoints(tmp_path):
    """Written by Lightning itself: the module's state dict and more, in a pickle that is read with weights_only."""
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.ModuleDict({"query": torch.nn.Linear(6, 4)})

        def training_step(self, batch, index):
            return self.net["query"](batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    torch.manual_seed(0)
    module, seen = Module(), {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen[trainer.global_step] = module.net["query"].weight.detach().clone()

    saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "run", every_n_train_steps=2, save_top_k=-1)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=[Keep(), saving], **options)
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(16, 6), batch_size=4))
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [2, 4]
    assert run.modules == ["net.query"]
    for step in run.steps:
        assert torch.equal(run.weight("net.query", step), seen[step])
