"""Shards with different tokenizers read one text: which token of one may be seen from which token of another.

Shards that share a tokenizer form a *lane*: they take the same token ids. Lane 0 is the anchor's. The text is
what the anchor's ids say; every other lane's tokens follow from it as soon as no later text can change them.

| module | owns |
|---|---|
| `settling` | a tokenizer that gives out tokens only once they are certain |
| `weave` | one session's tokens in all lanes, and which row sees which |
| `rows` | the same for a packed batch, as fusion modules get it |
| `pieces` | the bytes that a token stands for |
| `vocabulary` | one vocabulary's next-token probabilities as another's |
"""

from braid_fusion.alignment.pieces import token_pieces
from braid_fusion.alignment.rows import Alignment, LaneRows
from braid_fusion.alignment.settling import SettlingTokenizer
from braid_fusion.alignment.vocabulary import VocabularyMap
from braid_fusion.alignment.weave import Weave

__all__ = ["Alignment", "LaneRows", "SettlingTokenizer", "VocabularyMap", "Weave", "token_pieces"]
