"""Writes names.json: From fields as Python's email package folds them, with what its
readers then find. Run again: python3 names.py >names.json

Both ways of making a message are used: MIMEText (policy compat32, which folds within
quotes) and EmailMessage (policy SMTP, which some versions let drop the quotes).
"""
import email
import email.policy
import json
import re
import sys
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.mime.text import MIMEText
from email.utils import formataddr, getaddresses, parseaddr

ADDRESS = "alice@ok.example"
FOUND = re.compile(r'[^\s<>"(),:;\[\]\\]+@[^\s<>"(),:;\[\]\\]+')


def compat32(value):
    m = MIMEText("x")
    m["From"] = value
    return m.as_bytes(policy=m.policy.clone(linesep="\r\n"))


def smtp(value):
    m = EmailMessage(policy=email.policy.SMTP)
    m["From"] = value
    m.set_content("x")
    return m.as_bytes()


def field(message):
    """The body of From, folds included, without its last CRLF."""
    return re.search(rb"^From:((?:.*\r\n)(?:[ \t].*\r\n)*)", message, re.M).group(1)[:-2].decode()


def readings(value):
    """Every address that one of Python's readers finds."""
    found = set()
    for v in (value, value.replace("\r\n", "\n"), value.replace("\r\n", "")):
        for _, a in getaddresses([v]) + [parseaddr(v)]:
            found.update(FOUND.findall(a) if "@" in a else [])
    m = email.message_from_bytes(b"From:" + value.encode() + b"\r\n\r\n", policy=email.policy.default)
    found.update(a.addr_spec for a in m["From"].addresses if "@" in a.addr_spec)
    for _, a in getaddresses([str(make_header(decode_header(value)))]):
        found.update(FOUND.findall(a) if "@" in a else [])
    return sorted(found)


def names():
    # One comma, at every place around the line's end.
    for before in range(30, 90, 3):
        for behind in (1, 20, 60):
            yield "x" * before + ", " + "y" * behind
    # Words and one comma.
    for words in range(4, 26, 3):
        for comma in range(0, words, 4):
            yield " ".join("word%d" % i + ("," if i == comma else "") for i in range(words))
    # Everything that is quoted, and folds on several lines.
    for sep in (", ", "; ", ": ", " (x) ", " [x] ", ' "q" ', " a\\b ", " . ", " @ ", " <x> ", ",", ",  "):
        for times in (3, 11, 40):
            yield sep.join("name%d" % i for i in range(times))
    for name in ("victim@bank.example, %s", "%s <victim@bank.example>, x", "%s, ceo@ok.example"):
        for n in (1, 60, 75):
            yield name % ("x" * n)


cases = []
for name in names():
    for how in (compat32, smtp):
        given = formataddr((name, ADDRESS))
        value = field(how(given))
        cases.append({
            "policy": how.__name__, "value": value,
            "intact": value.split() == given.split(),  # but for folds: the quotes are there
            "found": readings(value),
            "folds": [a for _, a in getaddresses([value]) if "@" in a],  # by the reader that ends quotes at folds
        })
json.dump(cases, sys.stdout, indent=0)
print()
