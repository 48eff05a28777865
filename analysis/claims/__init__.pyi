"""The names of deltaw.analysis.claims, and where each is; they are imported when they are asked for."""

from .bora import RESULTS as RESULTS
from .bora import bora_claims as bora_claims
from .claim import Claim as Claim
from .claim import Outcome as Outcome
from .claim import Verdict as Verdict
from .claim import claims_json as claims_json
from .claim import claims_markdown as claims_markdown
from .claim import claims_table as claims_table
from .claim import count_line as count_line
from .claim import format_number as format_number
from .claim import markdown_table as markdown_table
from .collect import gather as gather
from .collect import regions as regions
from .evidence import CHANGES as CHANGES
from .evidence import Evidence as Evidence
from .papers import PAPERS as PAPERS
from .papers import all_checks as all_checks
from .papers import claims as claims
from .rules import Check as Check
from .rules import decide as decide
