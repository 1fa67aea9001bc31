"""What decisions say, each number with an interval.

Every function takes pandas DataFrames: `judgements`, one row per (question_id, order, method), and `questions`, one row
per question, with the columns of a run folder's tables (others are not looked at). A `column` argument picks the raw
decisions ("choice") or those after calibration ("choice_calibrated"). Slots count from 0.

Beneath them lies one reduction (`kvattn.stats.picks`): judgements beside the reference's, then sums per question. A run
folder is a source of those sums as DataFrames are: `stats.jcr(run)` is `stats.jcr(run.judgements(), run.questions())`,
without reading a row into Python. `scope` picks calibrated choices, mixed questions or a number of candidates.

Two candidates of a question with equal texts are the same choice. Judgements of one question under several orders are
not independent: intervals named `low`, `high` resample whole questions, and where a test takes rows for independent
its docstring says so and names the column that does not.
"""

from __future__ import annotations

from kvattn.questions.answers import final_answer
from kvattn.stats.accuracy import accuracy, flip_table
from kvattn.stats.agreement import by_candidate_agreement, by_margin, by_permutation_distance, jcr
from kvattn.stats.echo import echo
from kvattn.stats.frames import Column
from kvattn.stats.independence import independence
from kvattn.stats.mass import MassChange, mass_change
from kvattn.stats.measures import measures
from kvattn.stats.picks import Frames, Scope, Source, paired
from kvattn.stats.reading import ContentTest, content_test
from kvattn.stats.regression import flip_regression, flip_rows
from kvattn.stats.resampling import Resampling, holm
from kvattn.stats.slot_views import over_questions, ranked_heads, slot_values, view_name
from kvattn.stats.slots import position_bias, slot_histogram, slot_marginal_test

__all__ = [
    "Column",
    "ContentTest",
    "Frames",
    "MassChange",
    "Resampling",
    "Scope",
    "Source",
    "accuracy",
    "by_candidate_agreement",
    "by_margin",
    "by_permutation_distance",
    "content_test",
    "echo",
    "final_answer",
    "flip_regression",
    "flip_rows",
    "flip_table",
    "holm",
    "independence",
    "jcr",
    "mass_change",
    "measures",
    "over_questions",
    "paired",
    "position_bias",
    "ranked_heads",
    "slot_histogram",
    "slot_marginal_test",
    "slot_values",
    "view_name",
]
