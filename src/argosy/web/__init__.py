"""The admin API and the page in the browser."""
