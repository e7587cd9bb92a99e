"""Whether braiding is worth its cost: experiments that set a braid beside everything simpler (`braid bench worth`).

| modules | own |
|---|---|
| `contest` | who takes part in a contest over two models, and how they are trained |
| `measuring`, `texts` | texts as the models read them, and how they are divided |
| `contest_result`, `contest_report`, `contest_plot` | what runs found, as values, tables and a picture |
| `models`, `llamas` | models in folders, and small ones that are trained from nothing |
| `history_gate` | a gate that also knows how well each model predicted so far |
| `specialists`, `specialist_*` | a contest over two models of one start and one tokenizer |
| `pretrained`, `pretrained_*` | a contest over a pretrained model and a partner with another tokenizer |
| `keys`, `key_*` | arithmetic over keys, which has contestants and exercises of its own |
"""
