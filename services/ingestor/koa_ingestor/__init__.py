"""KOA RTI ingestor service."""
