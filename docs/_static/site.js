// A page opened from a folder may not fetch others, from which summaries of what is found come.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The theme's buttons that unfold a list of pages have a picture and no name.
addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("nav li.has-children > details > summary")) {
    const page = button.closest("li").querySelector("a");
    button.setAttribute("aria-label", `Pages below ${page.textContent.trim()}`);
  }
  // A signature over several lines is written as a list of definitions, which it is not.
  for (const part of document.querySelectorAll("dt.sig > dl, dt.sig > dl > dd")) {
    part.setAttribute("role", "presentation");
  }
  // A formula that is wider than the page can be scrolled by arrow keys.
  for (const formula of document.querySelectorAll("div.math")) {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  }
});
