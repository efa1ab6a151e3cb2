"""Model card, report and Hub: everything that is made from the record of a finished run."""
