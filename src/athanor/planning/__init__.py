"""What a training will need, before it is begun: `athanor plan`."""
