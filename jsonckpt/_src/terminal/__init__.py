"""What all commands share: arguments, printing, reports and exit codes."""
