"""Model surgery for grafting: split points, blocks in a teacher, merged 1×1 convolutions."""
