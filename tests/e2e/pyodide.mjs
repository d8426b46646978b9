// Runs a Python program in Pyodide: node pyodide.mjs PROGRAM WHEEL...
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// From where npm was run, not from beside this file.
const require = createRequire(pathToFileURL(process.cwd() + "/"));
const { loadPyodide } = await import(pathToFileURL(require.resolve("pyodide/pyodide.mjs")));

const [program, ...wheels] = process.argv.slice(2);
const pyodide = await loadPyodide();
for (const wheel of wheels) pyodide.unpackArchive(new Uint8Array(readFileSync(wheel)), "wheel");
pyodide.runPython(readFileSync(program, "utf8"));
