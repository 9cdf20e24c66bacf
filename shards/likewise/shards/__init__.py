"""One partition of a gallery: index, filter, planner, store, writer, merge."""
