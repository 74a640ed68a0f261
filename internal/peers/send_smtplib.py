# Sends one mail with smtplib; the settings are JSON on the standard input.
import base64, json, smtplib, ssl, sys

s = json.load(sys.stdin)
context = ssl.create_default_context(cafile=s["CAFile"])
if s["TLS"] == "implicit":
    server = smtplib.SMTP_SSL(s["Host"], s["Port"], "client.example", timeout=150, context=context)
else:
    server = smtplib.SMTP(s["Host"], s["Port"], "client.example", timeout=150)
with server:
    server.set_debuglevel(1)
    if s["TLS"] == "starttls":
        server.starttls(context=context)
    server.ehlo()
    server.user, server.password = s["User"], s["Password"]
    mechanism = {"PLAIN": server.auth_plain, "LOGIN": server.auth_login}[s["Mechanism"]]
    server.auth(s["Mechanism"], mechanism)
    refused = server.sendmail(s["From"], s["To"], base64.b64decode(s["Body"]))
    if refused:
        sys.exit("refused: %r" % refused)
