"""Quality on the scenes world: what a recipe draws and answers, scored exactly, with intervals and paired tests."""
