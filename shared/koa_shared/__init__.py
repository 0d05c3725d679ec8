"""What the services of KOA RTI share: contracts, durable jobs, adapters."""
