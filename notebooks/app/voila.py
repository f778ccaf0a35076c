"""How ``make app`` serves the explorer: on this machine only, with a token, without code or files.

Voila reads this file because the Makefile names its folder; ``c`` is its configuration.
"""

TAG = "app"  # cells with this tag are the page; the others are not executed


def page(request, notebook, cwd):
    """Keep of the lesson what makes up the page; the badges of the title lead nowhere here."""
    # To read the token sets its cookie. The page that is left sends it back when it asks to end
    # its kernel; without it Voila refuses, and every reload would leave a kernel behind.
    _ = request.xsrf_token
    notebook.cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if not line.startswith("[!["))
    return notebook


c = get_config()  # noqa: F821  (given by traitlets)
c.Voila.ip = "127.0.0.1"
c.Voila.auto_token = True
c.Voila.open_browser = False
# The template of Voila names icons of another server; the browser shall ask this one alone.
c.Voila.tornado_settings = {
    "headers": {
        "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        "connect-src 'self' ws://127.0.0.1:* ws://localhost:*; frame-ancestors 'self'"
    }
}
c.VoilaConfiguration.prelaunch_hook = page
c.VoilaConfiguration.strip_sources = True
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.file_allowlist = []  # nothing of the folder is served
c.VoilaConfiguration.file_denylist = [".*"]
c.VoilaConfiguration.allow_template_override = "NO"
c.VoilaConfiguration.allow_theme_override = "NO"
c.VoilaConfiguration.extension_allowlist = [  # others are meant for Lab, and fail here
    "@jupyter-widgets/jupyterlab-manager",
    "@voila-dashboards/widgets-manager7",
    "@voila-dashboards/widgets-manager8",
]
# Seconds. A page that is left ends its kernel; this is for a browser that could not ask for it.
# A page that is open keeps its kernel.
c.MappingKernelManager.cull_idle_timeout = 600
