"""Where the repository lies, and the published data that may lie beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
ASSETS = ROOT / "tests" / "assets"
OLD_RUN = ASSETS / "run_format_1" / "run"  # made before the code was rearranged
SHARED = ROOT.parent / "shared" / "data"
LXMERT_LISTS = SHARED / "lxmert"  # all_ans.json and trainval_label2ans.json as LXMERT's repository has them
VQA_SUBSET = SHARED / "vqa_v2_subset"  # a part of VQA v2's official files

needs_shared_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs published data (answer lists, VQA v2) in ../shared/data"
)
