"""Operations and graphs: the rank recorder, pipeline schedules, stamping of repeated parts, folding of equal ranks."""
