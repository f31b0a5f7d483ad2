// Shows the mesh that the page carries: one mesh of one primitive, one matt material, its color and
// perhaps a normal map as PNG, as mesh/formats.py writes it. Where that cannot be, the poster beneath the canvas stays.
"use strict";

const FOV = 40 * Math.PI / 180;
const START = { azimuth: 35 * Math.PI / 180, elevation: 20 * Math.PI / 180, zoom: 1 };
// The light stands at the camera, as in the pictures of the mesh: AMBIENT and DIFFUSE of render.py.
const VERTEX = `#version 300 es
uniform mat4 toScreen;
in vec3 POSITION, NORMAL;
in vec4 TANGENT;
in vec2 TEXCOORD_0;
out vec3 place, normal;
out vec4 along;
out vec2 uv;
void main() {
  place = POSITION; normal = NORMAL; along = TANGENT; uv = TEXCOORD_0;
  gl_Position = toScreen * vec4(POSITION, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 eye;
uniform sampler2D albedo, bumps;
uniform bool bumpy;
in vec3 place, normal;
in vec4 along;
in vec2 uv;
out vec4 color;
void main() {
  vec3 outward = normalize(normal);
  if (bumpy) {
    vec3 right = normalize(along.xyz - dot(along.xyz, outward) * outward);
    vec3 up = cross(outward, right) * (along.w < 0.0 ? -1.0 : 1.0);
    outward = normalize(mat3(right, up, outward) * (2.0 * texture(bumps, uv).rgb - 1.0));
  }
  float facing = max(dot(outward, normalize(eye - place)), 0.0);
  color = vec4(texture(albedo, uv).rgb * (0.6 + 0.4 * facing), 1.0);
}`;

// ---- glTF 2.0 binary -----------------------------------------------------------------------------

const CHUNK_JSON = 0x4e4f534a;
const ARRAYS = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const PARTS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };

function readGlb(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const header = new DataView(bytes.buffer);
  const length = header.getUint32(12, true);
  if (header.getUint32(16, true) !== CHUNK_JSON) throw new Error("no GLB");
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
  const body = 20 + length + 8;
  const view = (index) => {
    const { byteOffset = 0, byteLength } = gltf.bufferViews[index];
    return bytes.slice(body + byteOffset, body + byteOffset + byteLength);
  };
  const array = (index) => {
    const { bufferView, byteOffset = 0, componentType, count, type } = gltf.accessors[index];
    return new ARRAYS[componentType](view(bufferView).buffer, byteOffset, count * PARTS[type]);
  };
  const primitive = gltf.meshes[0].primitives[0];
  const attributes = {};
  for (const name of ["POSITION", "NORMAL", "TANGENT", "TEXCOORD_0"]) {
    const index = primitive.attributes[name];
    if (index === undefined) continue;
    attributes[name] = { data: array(index), parts: PARTS[gltf.accessors[index].type] };
  }
  const { min, max } = gltf.accessors[primitive.attributes.POSITION];
  const indices = array(primitive.indices);
  const indexType = gltf.accessors[primitive.indices].componentType;
  const { pbrMetallicRoughness, normalTexture } = gltf.materials[primitive.material];
  // The color first, then perhaps the normal map.
  const pngs = [pbrMetallicRoughness.baseColorTexture, normalTexture].filter(Boolean)
    .map(({ index }) => view(gltf.images[gltf.textures[index].source].bufferView));
  return { attributes, indices, indexType, min, max, pngs };
}

// ---- WebGL ---------------------------------------------------------------------------------------

function compile(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("no program");
  return program;
}

function upload(gl, program, mesh, images) {
  for (const [name, { data, parts }] of Object.entries(mesh.attributes)) {
    const place = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, parts, gl.FLOAT, false, 0, 0);
  }
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.indices, gl.STATIC_DRAW);
  images.forEach((image, unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    // No mipmaps: they would mix the parts of the texture that lie side by side.
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
  });
  gl.useProgram(program);
  gl.uniform1i(gl.getUniformLocation(program, "bumps"), images.length - 1);
  gl.uniform1i(gl.getUniformLocation(program, "bumpy"), images.length > 1);
  gl.enable(gl.DEPTH_TEST);
}

// The product of two 4 x 4 matrices, column by column as WebGL has them.
function times(a, b) {
  const product = new Float32Array(16);
  for (let i = 0; i < 16; i++) {
    for (let k = 0; k < 4; k++) product[i] += a[(i % 4) + 4 * k] * b[4 * (i >> 2) + k];
  }
  return product;
}

// The camera of an orbit about `center`, y up, the front at azimuth 0.
function camera({ azimuth, elevation }, center, distance, radius, aspect) {
  const [sa, ca] = [Math.sin(azimuth), Math.cos(azimuth)];
  const [se, ce] = [Math.sin(elevation), Math.cos(elevation)];
  const back = [ce * sa, se, ce * ca];
  const right = [ca, 0, -sa];
  const up = [-se * sa, ce, -se * ca];
  const eye = center.map((c, i) => c + distance * back[i]);
  const moved = [right, up, back].map((axis) => -axis.reduce((sum, a, i) => sum + a * eye[i], 0));
  const look = [0, 1, 2].flatMap((i) => [right[i], up[i], back[i], 0]).concat(moved, 1);
  // Wide where the stage is wide, so that the mesh fits either way.
  const focal = Math.min(1, aspect) / Math.tan(FOV / 2);
  const near = Math.max(distance - radius, 0.01 * radius);
  const far = distance + radius;
  const depth = [(near + far) / (near - far), (2 * near * far) / (near - far)];
  const lens = [focal / aspect, 0, 0, 0, 0, focal, 0, 0, 0, 0, depth[0], -1, 0, 0, depth[1], 0];
  return { eye, toScreen: times(lens, look) };
}

// ---- what hands do -------------------------------------------------------------------------------

const within = (low, value, high) => Math.min(Math.max(value, low), high);

function listen(canvas, pose, redraw) {
  const fingers = new Map();
  const turn = (right, up) => {
    pose.azimuth -= right;
    pose.elevation = within(-1.5, pose.elevation + up, 1.5);
    redraw();
  };
  const zoom = (factor) => {
    pose.zoom = within(0.4, pose.zoom * factor, 8);
    redraw();
  };
  const reset = () => redraw(Object.assign(pose, START));
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const apart = fingers.size === 2 ? spread() : 0;
    const now = { x: event.clientX, y: event.clientY };
    fingers.set(event.pointerId, now);
    const scale = 4 / canvas.clientHeight;
    if (fingers.size === 1) turn(scale * (now.x - before.x), scale * (now.y - before.y));
    else if (apart) zoom(spread() / apart);
  });
  const lift = (event) => fingers.delete(event.pointerId);
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-0.0015 * within(-300, event.deltaY * (event.deltaMode ? 30 : 1), 300)));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => turn(-0.15, 0), ArrowRight: () => turn(0.15, 0),
    ArrowUp: () => turn(0, -0.15), ArrowDown: () => turn(0, 0.15),
    "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), Home: reset,
  };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

// ---- the whole -----------------------------------------------------------------------------------

async function show(canvas, mesh) {
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) throw new Error("no WebGL 2");
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const decode = (png) => createImageBitmap(new Blob([png], { type: "image/png" }), options);
  const images = await Promise.all(mesh.pngs.map(decode));
  const pose = { ...START };
  const center = mesh.min.map((low, i) => (low + mesh.max[i]) / 2);
  const radius = Math.hypot(...mesh.min.map((low, i) => (mesh.max[i] - low) / 2));
  let program = null;
  let asked = false;
  const start = () => { program = compile(gl); upload(gl, program, mesh, images); };
  const draw = () => {
    asked = false;
    if (gl.isContextLost()) return;
    const sharp = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = canvas;
    [canvas.width, canvas.height] = [clientWidth, clientHeight].map((x) => Math.round(x * sharp));
    gl.viewport(0, 0, canvas.width, canvas.height);
    const distance = radius / Math.sin(FOV / 2) / pose.zoom;
    const seen = camera(pose, center, distance, radius, clientWidth / clientHeight);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "toScreen"), false, seen.toScreen);
    gl.uniform3fv(gl.getUniformLocation(program, "eye"), seen.eye);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.drawElements(gl.TRIANGLES, mesh.indices.length, mesh.indexType, 0);
  };
  const redraw = () => {
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  };
  start();
  canvas.hidden = false;
  listen(canvas, pose, redraw);
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { start(); redraw(); });
  new ResizeObserver(redraw).observe(canvas);
}

async function main() {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    for (const film of document.querySelectorAll("video")) film.pause();
  }
  const canvas = document.getElementById("viewer");
  if (!canvas) return;
  const words = document.getElementById("viewer-words");
  try {
    const mesh = readGlb(document.getElementById("mesh").textContent);
    await show(canvas, mesh);
    canvas.parentElement.querySelectorAll("img").forEach((poster) => { poster.hidden = true; });
    const triangles = (mesh.indices.length / 3).toLocaleString("en");
    words.textContent = `Drag to turn, scroll or pinch to zoom. The mesh: ${triangles} triangles`;
  } catch (error) {
    canvas.hidden = true;
    words.textContent = `A render of the scene; the mesh cannot be shown here (${error.message})`;
  }
}

main();
