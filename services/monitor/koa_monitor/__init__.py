"""KOA RTI monitor service."""
