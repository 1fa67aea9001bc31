"""What each view means: a sentence on the page, a definition behind a click."""

from kvattn.report.health import DEFINITIONS

SLOT_MASS = (
    "**Slot mass** is the share of the deciding token's attention (the row of the *query token*) that falls on the "
    "candidate in a slot, header and separator not counted, mean over judgements.\n\n"
    "**Share among slots** divides by what falls on all candidates, **share per token** by the candidate's length. "
    "**Sinks** are tokens that draw much attention whatever they say; they are found for every method on its own row, "
    "layer by layer.\n\nMass is not influence: a head may look without moving anything."
)
CHANGE = (
    "**Paired change**: mean mass under one method over mean mass under the other, on the same judgements, shown as a "
    "factor. ×0.5 is half the attention. Heads weigh by their mass: one that looks at nothing cannot lead the mean. "
    "Only pairs in which the candidate has the same length count. Both methods are paired with dense; the difference "
    "of two such changes compares them."
)
JCR = "\n\n".join(
    f"**{name}**: {DEFINITIONS[name]}" for name in ("JCR", "95%", "by chance", "floor", "content test", "calibrated")
)
DISTANCE = f"{JCR}\n\n**distance**: {DEFINITIONS['distance']}"
SURPRISE = (
    "**Surprise**, in bits, is -log2 of the probability (softmax of the scores over slots) that dense gave to the slot "
    "that the method picks: 1 bit is a coin's toss, 10 bits one in a thousand. **Dense's margin** is its best score "
    "less its second best. **Order** names the candidate (from 1) in each slot."
)
PLACE = (
    "For every candidate: its slot mass in a slot over its own mean over all the slots it was shown in. ×1 means that "
    "the place of display does not matter. Mean over candidates, then questions, 95 % t interval over questions. "
    "Candidates that were shown in one slot alone do not count."
)
COST = f"**token-layer**: {DEFINITIONS['token-layer']} Dense computes all of them.\n\n{JCR}"
GATE = (
    "A gate looks at what cheap passes and the texts say (scores, slot mass, lengths, disagreement of two methods), "
    "never at dense, and accepts the reused decision where its score reaches a threshold. It is **granted** where an "
    "exact binomial test, on questions that it was not fitted on, shows that at most so many of the accepted decisions "
    "differ from dense. **AUC**: the chance that a safe decision scores higher than an unsafe one (0.5 by chance). "
    "**AP**: average precision of the safe ones; by chance their share. **bound**: the confidence bound of the share "
    "of flips among the accepted. Cost counts every pass, and dense where it is fallen back to."
)
