// A page opened from a folder may not fetch others, from which summaries of what is found come.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
