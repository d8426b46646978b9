"""What a running validator tells machines: metrics and traces, both made of decision records."""
