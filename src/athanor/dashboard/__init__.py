"""A local web page over a folder of runs, read-only: what there is, how far it is, how runs compare.

`shelf` reads the folder, `pages` fills the templates here (in the frame of athanor.report, whose drawings they use),
`server` answers a browser on this machine that has the token.
"""
