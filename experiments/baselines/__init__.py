"""Non-neural references, judged on the same prepared rows and by the same metrics as every model."""
