# Verifies messages with dkimpy; the settings are JSON on the standard input.
import json, sys
import dkim

s = json.load(sys.stdin)

def look_up(name, timeout=5):
    record = s["Records"].get(name.decode().rstrip("."))
    return record and record.encode()

results = []
for path in s["Files"]:
    with open(path, "rb") as f:
        message = dkim.DKIM(f.read())
    found = []
    for i in range(sum(name.lower() == b"dkim-signature" for name, _ in message.headers)):
        try:
            valid = message.verify(i, dnsfunc=look_up)
        except dkim.DKIMException:
            valid = False
        tags = message.signature_fields
        found.append({"Algorithm": tags[b"a"].decode(), "Domain": tags[b"d"].decode(), "Valid": bool(valid)})
    results.append(found)
json.dump(results, sys.stdout)
