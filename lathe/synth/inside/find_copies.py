"""Looks for other copies of packages on the machine that a sandbox sees, and names the functions in them.

Job on standard input: {"folder", "names": [top-level package or module, …], "out"}. The file `out` gets
{path of a copy: [[file within the package, function], …]}; a function "*" stands for all of a file.
"""

import ast
import json
import os
import sys
import zipfile

PLACES = ("/usr/lib", "/usr/local", "/usr/share", "/opt", "/lib", "/srv", "/var/lib")
ARCHIVES = (".whl", ".zip", ".pyz", ".egg")


def functions(body, prefix=""):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from functions(ast.iter_child_nodes(node), prefix)


def names_in(data):
    try:
        return list(functions(ast.parse(data).body))
    except (SyntaxError, ValueError):
        return ["*"]


def files_of(path):
    """(file within the package, its source or None for compiled code alone), for a package or a module."""
    if os.path.isfile(path):
        yield os.path.basename(path), read(path)
        return
    parent = os.path.dirname(path)
    for here, _, names in os.walk(path):
        sources = {name for name in names if name.endswith(".py")}
        for name in names:
            inner = os.path.relpath(os.path.join(here, name), parent)
            if name in sources:
                yield inner, read(os.path.join(here, name))
            elif name.endswith(".pyc"):
                folder, compiled = os.path.split(inner)
                source = compiled.split(".")[0] + ".py"
                if os.path.basename(folder) == "__pycache__":
                    folder = os.path.dirname(folder)
                if not os.path.exists(os.path.join(parent, folder, source)):
                    yield os.path.join(folder, source), None


def read(path):
    with open(path, "rb") as file:
        return file.read()


def in_archive(path, wanted):
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = name.split("/")
                for place, part in enumerate(parts):
                    if part.removesuffix(".py") in wanted and name.endswith(".py"):
                        yield "/".join(parts[place:]), archive.read(name)
                        break
    except (OSError, zipfile.BadZipFile):
        return


def main(job):
    wanted = frozenset(job["names"])
    places = [sys.prefix, sys.base_prefix, *PLACES, *sys.path]
    places = sorted({os.path.realpath(each) for each in places if each and os.path.isdir(each)})
    tops = [each for each in places if not any(each.startswith(other + "/") for other in places)]
    own = job["folder"]
    copies = {}
    for top in tops:
        for here, folders, files in os.walk(top):
            if here == own or here.startswith(own + "/"):
                folders[:] = []
                continue
            found = [name for name in folders if name in wanted]
            found += [name for name in files if name.endswith(".py") and name[:-3] in wanted]
            for name in found:
                path = os.path.join(here, name)
                own_files = [
                    (inner, ["*"] if data is None else names_in(data)) for inner, data in files_of(path)
                ]
                if own_files:
                    copies[path] = [[inner, each] for inner, names in own_files for each in names]
            for name in files:
                if name.endswith(ARCHIVES):
                    path = os.path.join(here, name)
                    pairs = [
                        [inner, each] for inner, data in in_archive(path, wanted) for each in names_in(data)
                    ]
                    if pairs:
                        copies[path] = pairs
    with open(job["out"], "w") as out:
        json.dump(copies, out)


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
