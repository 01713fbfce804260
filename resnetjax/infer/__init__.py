"""Running a pretrained net."""
