"""KOA RTI preparer service."""
