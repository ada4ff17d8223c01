"""What the clients did, as a table at the end of a run."""

HEADER = "| client | version | requests (others) | their tokens | read anew | cached | result |"


def pytest_terminal_summary(terminalreporter, config):
    """What docs/clients.md has of the clients that were run. Cached: of the conversation up to there."""
    if "not clients" in config.option.markexpr:
        return
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    rows = [
        f"{value} {report.outcome} |"
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "row" and report.when == "call"
    ]
    for line in [HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows] if rows else ():
        terminalreporter.write_line(line)
