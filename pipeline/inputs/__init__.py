"""Where sequences come from: one file for each input form, all giving the same batches of rows."""
