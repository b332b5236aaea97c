def report(r): return "<html></html>"
