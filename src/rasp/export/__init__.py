"""Networks for other toolchains."""
