"""Model card, report and Hub: everything that is generated from the records of a finished run."""
