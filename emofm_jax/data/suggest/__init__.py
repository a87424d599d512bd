"""Raw rows -> a first experiment file: `prepare --suggest`.

sample.py reads some rows and tells what kind of file they are of; columns.py guesses what each
column (column.py) is, label.py which one is the label; experiment.py writes the file, with what was
seen beside each line and what could not be decided as a question.
"""
