"""Where models come from: open_clip, transformers, a module of one's own, a composer's state dict; and their export."""
