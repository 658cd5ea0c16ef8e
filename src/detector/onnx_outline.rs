//! An ONNX file, read only for the names of the files that hold its tensors and for the size of the image that it takes.
//!
//! ONNX is protobuf: a message is a list of fields, each a number and a value. Numbers and names are those of onnx.proto
//! (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>). Nothing is trusted: a length is checked before it is used,
//! and the depth of graphs within graphs is limited. Weights are skipped.

use std::path::{Component, Path, PathBuf};

/// The depth of graphs within attributes of nodes within graphs. Models have a depth of one or two.
const MAX_DEPTH: u32 = 32;

/// What is read from an ONNX file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct OnnxOutline {
    /// Tensors whose data is in other files.
    pub(super) external: Vec<ExternalTensor>,
    /// Height and width of the one image input, where the file fixes them.
    pub(super) image: Option<(u32, u32)>,
}

/// A tensor in another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExternalTensor {
    /// The tensor's name, which may be empty.
    pub(super) tensor: String,
    /// The file, relative to the model's folder, as the model names it.
    pub(super) location: String,
}

/// Why an ONNX file cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutlineError {
    /// It is not ONNX, or it is damaged.
    #[error("it is not an ONNX file, or it is damaged: {0}")]
    Damaged(&'static str),
    /// A clone without Git's large-file storage has only the names of its large files.
    #[error(
        "it is a pointer of Git's large-file storage, not the model\n  hint: run `git lfs pull` there, or fetch the package with `pixwarden models fetch`"
    )]
    Pointer,
    /// A tensor is in a file that has no name.
    #[error("the tensor \"{0}\" is in another file, but that file is not named")]
    NoLocation(String),
}

impl OnnxOutline {
    /// Reads the bytes of a model file.
    pub(super) fn of(model: &[u8]) -> Result<Self, OutlineError> {
        // https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
        if model.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Err(OutlineError::Pointer);
        }
        let mut outline = Self::default();
        let mut inputs = Vec::new();
        let mut has_graph = false;
        for field in ProtobufMessage(model) {
            match field? {
                // ModelProto.graph
                (7, FieldValue::Bytes(graph)) => {
                    has_graph = true;
                    outline.graph(graph, 0)?;
                    image_inputs(graph, &mut inputs)?;
                }
                // ModelProto.training_info: initialization = 1 and algorithm = 2 are graphs
                (20, FieldValue::Bytes(training)) => outline.each(training, &[1, 2], |o, graph| o.graph(graph, 0))?,
                // ModelProto.functions: FunctionProto.node = 7, and attribute_proto = 11, the attributes with defaults
                (25, FieldValue::Bytes(function)) => {
                    outline.each(function, &[7], |o, node| o.node(node, 0))?;
                    outline.each(function, &[11], |o, attribute| o.attribute(attribute, 0))?;
                }
                _ => {}
            }
        }
        if !has_graph {
            return Err(OutlineError::Damaged("it holds no graph"));
        }
        if let [only] = inputs[..] {
            outline.image = only;
        }
        Ok(outline)
    }

    /// Visits the messages in the fields of these numbers.
    fn each(
        &mut self,
        message: &[u8],
        numbers: &[u32],
        mut visit: impl FnMut(&mut Self, &[u8]) -> Result<(), OutlineError>,
    ) -> Result<(), OutlineError> {
        for field in ProtobufMessage(message) {
            if let (number, FieldValue::Bytes(bytes)) = field?
                && numbers.contains(&number)
            {
                visit(self, bytes)?;
            }
        }
        Ok(())
    }

    fn graph(&mut self, graph: &[u8], depth: u32) -> Result<(), OutlineError> {
        if depth > MAX_DEPTH {
            return Err(OutlineError::Damaged("its graphs are nested too deeply"));
        }
        for field in ProtobufMessage(graph) {
            match field? {
                // GraphProto: node = 1, initializer = 5, sparse_initializer = 15
                (1, FieldValue::Bytes(node)) => self.node(node, depth)?,
                (5, FieldValue::Bytes(tensor)) => self.tensor(tensor)?,
                (15, FieldValue::Bytes(sparse)) => self.sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &[u8], depth: u32) -> Result<(), OutlineError> {
        // NodeProto.attribute = 5
        self.each(node, &[5], |outline, attribute| outline.attribute(attribute, depth))
    }

    fn attribute(&mut self, attribute: &[u8], depth: u32) -> Result<(), OutlineError> {
        for field in ProtobufMessage(attribute) {
            match field? {
                // AttributeProto: t = 5 and tensors = 10, g = 6 and graphs = 11, sparse_tensor = 22 and
                // sparse_tensors = 23
                (5 | 10, FieldValue::Bytes(tensor)) => self.tensor(tensor)?,
                (6 | 11, FieldValue::Bytes(graph)) => self.graph(graph, depth + 1)?,
                (22 | 23, FieldValue::Bytes(sparse)) => self.sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// SparseTensorProto: values = 1, indices = 2
    fn sparse(&mut self, sparse: &[u8]) -> Result<(), OutlineError> {
        self.each(sparse, &[1, 2], Self::tensor)
    }

    fn tensor(&mut self, tensor: &[u8]) -> Result<(), OutlineError> {
        let (mut name, mut is_external, mut locations) = (String::new(), false, Vec::new());
        for field in ProtobufMessage(tensor) {
            match field? {
                // TensorProto: name = 8, external_data = 13, data_location = 14 (EXTERNAL = 1)
                (8, FieldValue::Bytes(bytes)) => name = text(bytes)?,
                (13, FieldValue::Bytes(entry)) => locations.extend(location(entry)?),
                (14, FieldValue::Number(1)) => is_external = true,
                _ => {}
            }
        }
        if is_external && locations.is_empty() {
            return Err(OutlineError::NoLocation(name));
        }
        // All locations count, since it is not specified which of them a runtime takes.
        self.external.extend(locations.into_iter().map(|location| ExternalTensor { tensor: name.clone(), location }));
        Ok(())
    }
}

/// `StringStringEntryProto` (key = 1, value = 2): the value, if the key is `location`.
fn location(entry: &[u8]) -> Result<Option<String>, OutlineError> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in ProtobufMessage(entry) {
        match field? {
            (1, FieldValue::Bytes(bytes)) => key = text(bytes)?,
            (2, FieldValue::Bytes(bytes)) => value = text(bytes)?,
            _ => {}
        }
    }
    Ok((key == "location").then_some(value))
}

/// Collects the height and width of every input of four dimensions: `[batch, 3, height, width]` or
/// `[batch, height, width, 3]`.
fn image_inputs(graph: &[u8], inputs: &mut Vec<Option<(u32, u32)>>) -> Result<(), OutlineError> {
    for field in ProtobufMessage(graph) {
        // GraphProto.input = 11, ValueInfoProto.type = 2, TypeProto.tensor_type = 1, Tensor.shape = 2,
        // TensorShapeProto.dim = 1
        let (11, FieldValue::Bytes(input)) = field? else { continue };
        let dimensions = within(within(within(within(vec![input], 2)?, 1)?, 2)?, 1)?;
        let dimensions: Vec<_> = dimensions.into_iter().map(dimension).collect::<Result<_, _>>()?;
        match dimensions[..] {
            [_, Some(3), height, width] | [_, height, width, Some(3)] => inputs.push(height.zip(width)),
            [_, _, _, _] => inputs.push(None),
            _ => {}
        }
    }
    Ok(())
}

/// Every message under one field number of any of the messages.
fn within(messages: Vec<&[u8]>, number: u32) -> Result<Vec<&[u8]>, OutlineError> {
    let mut found = Vec::new();
    for field in messages.into_iter().flat_map(ProtobufMessage) {
        if let (n, FieldValue::Bytes(bytes)) = field?
            && n == number
        {
            found.push(bytes);
        }
    }
    Ok(found)
}

/// `Dimension.dim_value` = 1. A dimension with a name instead has no fixed size.
fn dimension(message: &[u8]) -> Result<Option<u32>, OutlineError> {
    let mut size = None;
    for field in ProtobufMessage(message) {
        if let (1, FieldValue::Number(n)) = field? {
            size = u32::try_from(n).ok().filter(|n| *n > 0);
        }
    }
    Ok(size)
}

fn text(bytes: &[u8]) -> Result<String, OutlineError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| OutlineError::Damaged("a name is not UTF-8"))
}

/// A field's value. Fixed-width numbers are skipped, since none is needed.
enum FieldValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of a protobuf message, in the order of the file. After an error there are no more fields.
#[derive(Clone, Copy)]
struct ProtobufMessage<'a>(&'a [u8]);

impl<'a> ProtobufMessage<'a> {
    fn number(&mut self) -> Result<u64, OutlineError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(OutlineError::Damaged("it ends in a number"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(OutlineError::Damaged("a number has more than ten bytes"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], OutlineError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let cut = OutlineError::Damaged("a field is longer than the rest of the file");
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(cut)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u32, FieldValue<'a>), OutlineError> {
        let tag = self.number()?;
        let number = u32::try_from(tag >> 3).map_err(|_| OutlineError::Damaged("a field's number is too large"))?;
        let value = match tag & 7 {
            0 => FieldValue::Number(self.number()?),
            1 => self.take(8).map(|_| FieldValue::Skipped)?,
            2 => {
                let length = self.number()?;
                FieldValue::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| FieldValue::Skipped)?,
            _ => return Err(OutlineError::Damaged("a field has an unknown wire type")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for ProtobufMessage<'a> {
    type Item = Result<(u32, FieldValue<'a>), OutlineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Why a file in which a model keeps tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExternalFileError {
    #[error("it must be a relative path without `..`")]
    NotRelative,
    #[error("it leads out of the package, to {}", .0.display())]
    OutsidePackage(PathBuf),
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    #[error("cannot read {}", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
}

/// The file of a tensor's location. With links resolved it has to lie in the package's folder.
pub(super) fn external_path(folder: &Path, model: &Path, location: &str) -> Result<PathBuf, ExternalFileError> {
    let relative = Path::new(location);
    let is_relative = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_relative || relative.as_os_str().is_empty() {
        return Err(ExternalFileError::NotRelative);
    }
    let file = model.parent().unwrap_or(folder).join(relative);
    let read_error = |source| ExternalFileError::Read { file: file.clone(), source };
    let (folder, real) = (folder.canonicalize().map_err(read_error)?, file.canonicalize().map_err(read_error)?);
    if !real.starts_with(folder) {
        return Err(ExternalFileError::OutsidePackage(real));
    }
    if real.is_file() { Ok(file) } else { Err(ExternalFileError::NotAFile(file)) }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field that holds bytes.
    fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        let mut field = vec![];
        varint(&mut field, u64::from(number) << 3 | 2);
        varint(&mut field, value.len() as u64);
        field.extend_from_slice(value);
        field
    }

    fn number(field: u8, value: u64) -> Vec<u8> {
        let mut bytes = vec![];
        varint(&mut bytes, u64::from(field) << 3);
        varint(&mut bytes, value);
        bytes
    }

    fn varint(into: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            into.push(u8::try_from(value & 0x7F).unwrap() | 0x80);
            value >>= 7;
        }
        into.push(u8::try_from(value).unwrap());
    }

    /// A tensor `w` in another file.
    pub(in crate::detector) fn tensor(location: &str) -> Vec<u8> {
        let entry = [bytes(1, b"location"), bytes(2, location.as_bytes())].concat();
        [bytes(8, b"w"), number(14, 1), bytes(13, &entry)].concat()
    }

    /// A model whose graph has one initializer.
    pub(in crate::detector) fn model(tensor: &[u8]) -> Vec<u8> {
        bytes(7, &bytes(5, tensor))
    }

    fn locations(model: &[u8]) -> Vec<String> {
        OnnxOutline::of(model).unwrap().external.into_iter().map(|external| external.location).collect()
    }

    #[test]
    fn a_tensor_in_another_file_is_found_in_every_part_of_a_model() {
        let tensor = tensor("weights.bin");
        let attribute = |number: u8, value: &[u8]| bytes(1, &bytes(5, &bytes(number, value)));
        let graph_of = |node: &[u8]| bytes(7, node);
        for (place, model) in [
            ("initializer", model(&tensor)),
            ("sparse initializer", bytes(7, &bytes(15, &bytes(1, &tensor)))),
            ("sparse indices", bytes(7, &bytes(15, &bytes(2, &tensor)))),
            ("attribute", graph_of(&attribute(5, &tensor))),
            ("one of an attribute's tensors", graph_of(&attribute(10, &tensor))),
            ("a branch", graph_of(&attribute(6, &bytes(5, &tensor)))),
            ("one of a node's graphs", graph_of(&attribute(11, &attribute(5, &tensor)))),
            ("sparse attribute", graph_of(&attribute(22, &bytes(1, &tensor)))),
            ("function", [bytes(7, b""), bytes(25, &bytes(7, &bytes(5, &bytes(5, &tensor))))].concat()),
            ("a function's default", [bytes(7, b""), bytes(25, &bytes(11, &bytes(5, &tensor)))].concat()),
            ("training", [bytes(7, b""), bytes(20, &bytes(2, &bytes(5, &tensor)))].concat()),
        ] {
            assert_eq!(locations(&model), ["weights.bin"], "{place}");
        }
        let inside = [bytes(8, b"w"), bytes(9, &[0; 64])].concat();
        assert!(locations(&model(&inside)).is_empty());
    }

    #[test]
    fn the_size_of_the_image_is_read_where_it_is_fixed() {
        let input = |dimensions: &[u64]| {
            let dimensions: Vec<u8> = dimensions
                .iter()
                .flat_map(|d| bytes(1, &if *d == 0 { bytes(2, b"n") } else { number(1, *d) }))
                .collect();
            bytes(7, &bytes(11, &bytes(2, &bytes(1, &bytes(2, &dimensions)))))
        };
        for (dimensions, image) in [
            (&[0, 3, 224, 192][..], Some((224, 192))),
            (&[0, 224, 192, 3], Some((224, 192))),
            (&[0, 3, 0, 0], None),
            (&[0, 3], None),
        ] {
            assert_eq!(OnnxOutline::of(&input(dimensions)).unwrap().image, image, "{dimensions:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_without_a_panic() {
        let good = model(&tensor("weights.bin"));
        for length in 0..good.len() {
            assert!(OnnxOutline::of(&good[..length]).is_err(), "cut after {length} bytes");
        }
        let mut deep = bytes(5, &tensor("weights.bin"));
        for _ in 0..=MAX_DEPTH {
            deep = bytes(1, &bytes(5, &bytes(6, &deep)));
        }
        assert!(OnnxOutline::of(&bytes(7, &deep)).unwrap_err().to_string().contains("nested too deeply"));
        // A length of almost 2^64.
        let mut endless = vec![7 << 3 | 2];
        varint(&mut endless, u64::MAX);
        assert!(OnnxOutline::of(&endless).unwrap_err().to_string().contains("longer than the rest"));
        let nameless = [bytes(8, b"w"), number(14, 1)].concat();
        assert_eq!(OnnxOutline::of(&model(&nameless)), Err(OutlineError::NoLocation("w".into())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(OnnxOutline::of(&bytes));
            drop(OnnxOutline::of(&super::tests::bytes(7, &bytes)));
            drop(OnnxOutline::of(&model(&bytes)));
        }
    }

    #[test]
    fn a_location_outside_the_package_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"x").unwrap();
        let package = tempfile::tempdir().unwrap();
        let model = package.path().join("onnx/model.onnx");
        std::fs::create_dir_all(package.path().join("onnx/deep")).unwrap();
        std::fs::write(package.path().join("onnx/weights.bin"), b"x").unwrap();
        std::fs::write(package.path().join("onnx/deep/weights.bin"), b"x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), package.path().join("onnx/link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), package.path().join("onnx/folder")).unwrap();
        std::os::unix::fs::symlink("weights.bin", package.path().join("onnx/inner")).unwrap();
        let path_of = |location: &str| external_path(package.path(), &model, location);
        for location in ["weights.bin", "deep/weights.bin", "inner"] {
            assert!(path_of(location).is_ok(), "{location}: {:?}", path_of(location));
        }
        let absolute = outside.path().join("secret").to_str().unwrap().to_owned();
        for (location, why) in [
            (absolute.as_str(), "relative path without `..`"),
            ("../secret", "relative path without `..`"),
            ("deep/../../config.json", "relative path without `..`"),
            ("", "relative path without `..`"),
            ("link", "leads out of the package"),
            ("folder/secret", "leads out of the package"),
            ("missing", "cannot read"),
            ("deep", "is not a file"),
        ] {
            assert!(path_of(location).unwrap_err().to_string().contains(why), "{location}: {:?}", path_of(location));
        }
    }
}
