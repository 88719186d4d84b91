"""Why a model answered what it answered."""
