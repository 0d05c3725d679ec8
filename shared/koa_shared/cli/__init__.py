"""`koa`: what observers and operators do from a command line."""
