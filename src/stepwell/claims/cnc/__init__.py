"""The study of complex networks classified by their pictures."""
