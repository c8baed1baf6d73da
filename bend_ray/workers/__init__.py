"""What runs in Ray's processes, one file a stage (and `replica`, of the endpoint). The driver's side is `stages/`."""
