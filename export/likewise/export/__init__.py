"""Training, export and evaluation of models, and the manifest that describes an exported one."""
