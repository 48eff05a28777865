"""What a notebook shows of a run, a spectrum, a change and a claim: a small table, and no markup of strangers."""

import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory, change, spectrum
from deltaw.analysis.claims import claims, gather
from deltaw.analysis.claims.claim import Claim, Outcome, Verdicts


def test_each_is_a_table_with_its_numbers():
    found = spectrum(torch.diag(torch.tensor([3.0, 1.0])))
    assert "<th>rank</th><td>2</td>" in found._repr_html_()
    moved = change(torch.eye(2), 2 * torch.eye(2), "row")
    assert "<th>ΔM</th><td>1</td>" in moved._repr_html_()
    outcome = Outcome(Claim("BoRA", "Figure 2", "it is <so>"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
    assert "it is &lt;so&gt;" in outcome._repr_html_()


def test_names_of_strangers_stay_text(tmp_path):
    name = "<script>alert(1)</script>\x1b[2J"
    save_file({f"{name}.query.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    shown = Trajectory.open(tmp_path / "model.safetensors")._repr_html_()
    assert shown.startswith("<table>")
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in shown


def test_verdicts_are_one_table_with_the_count_first():
    """`claims` returned a plain list, which a notebook shows as the code of its entries."""
    seen = Outcome(Claim("BoRA", "Figure 2", "it is <so>"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
    unseen = Outcome(Claim("BoRA", "Figure 3", "it is not"), "unclear", None, None, None, "", "missing: a run of ft")
    shown = Verdicts([seen, unseen])._repr_html_()
    assert "<caption>1 claim: 1 agree, 0 disagree, 0 unclear. 1 more need runs that are not here.</caption>" in shown
    assert "<td>it is &lt;so&gt;</td>" in shown
    assert "it is not" not in shown


def test_claims_of_runs_are_verdicts(tmp_path):
    save_file({"query.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    evidence = gather([Trajectory.open(tmp_path / "model.safetensors")], ["bora"])
    assert "<caption>" in claims(evidence, ["bora"])._repr_html_()
