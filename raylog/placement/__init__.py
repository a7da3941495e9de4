"""Who runs where and what lies where: a pure model, a solver's answer rounded to whole workers, and the reasons why."""
