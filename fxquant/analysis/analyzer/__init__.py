"""The parts of `QuantAnalyzer`: what it is given, what it measures, how it is shown."""
