"""A client of Amazon Rekognition as its SDK makes it: prints what each request gets, one JSON object a line.

Arguments: the endpoint, the access key id, the secret, a bucket, and then files. Each file is sent as bytes, and as an object
whose key is the file's name.
"""

import json
import sys
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, key_id, secret, bucket, *files = sys.argv[1:]


def client(secret: str):
    return boto3.client(
        "rekognition",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def ask(what: str, rekognition, **arguments) -> None:
    try:
        answer = rekognition.detect_moderation_labels(**arguments)
        labels = [[label["ParentName"], label["Name"], label["Confidence"]] for label in answer["ModerationLabels"]]
        print(json.dumps({"what": what, "labels": labels, "version": answer["ModerationModelVersion"]}))
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        print(json.dumps({"what": what, "error": code, "message": message, "is_modelled": is_modelled(rekognition, error)}))


def is_modelled(rekognition, error: ClientError) -> bool:
    """Whether the SDK has a class for the error, so that callers can catch it by its name."""
    known = getattr(rekognition.exceptions, error.response["Error"]["Code"], None)
    return known is not None and isinstance(error, known)


rekognition = client(secret)
for file in files:
    path = Path(file)
    ask(f"bytes {path.name}", rekognition, Image={"Bytes": path.read_bytes()}, MinConfidence=99)
    ask(f"object {path.name}", rekognition, Image={"S3Object": {"Bucket": bucket, "Name": path.name}}, MinConfidence=99)
ask("no object", rekognition, Image={"S3Object": {"Bucket": bucket, "Name": "none"}})
ask("other bucket", rekognition, Image={"S3Object": {"Bucket": "elsewhere", "Name": "a"}})
ask("no image", rekognition, Image={"Bytes": b"<html>"})
ask("no confidence", rekognition, Image={"Bytes": b"x"}, MinConfidence=101)
ask("human loop", rekognition, Image={"Bytes": b"x"}, HumanLoopConfig={"HumanLoopName": "a", "FlowDefinitionArn": "b"})
ask("wrong secret", client(secret + "x"), Image={"Bytes": b"x"})
try:
    rekognition.detect_labels(Image={"Bytes": b"x"})
except ClientError as error:
    print(json.dumps({"what": "other operation", "error": error.response["Error"]["Code"]}))
