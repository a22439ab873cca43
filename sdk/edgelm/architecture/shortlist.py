"""What a head with a shortlist and whoever runs it have to agree on (edgelm_export/graph/shortlist.py)."""

# Only so many last positions have shortlists, since each gathers hundreds of rows: for logits of more, a text is run in
# pieces. Programs that ask for all of a prompt's logits read the last.
SHORTLISTED_POSITIONS = 32
