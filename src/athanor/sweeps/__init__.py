"""Many runs for one question: ablations over seeds, searches, and what their numbers say."""
