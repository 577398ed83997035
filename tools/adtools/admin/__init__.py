"""`adctl admin`: the web application in which people book, check and pause ads (the extra adcore[admin]).

A Django project in one package, on the store that the servers read. Only here is Django imported, and only the process
of `adctl admin` imports it: `command` puts the subcommand into adctl, `project` has the settings, `site` what a person
sees. `documents` and `images` know nothing of Django.
"""
