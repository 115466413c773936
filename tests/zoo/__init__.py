"""The zoo: many foreign models through the whole pipeline, run by `make zoo`."""
